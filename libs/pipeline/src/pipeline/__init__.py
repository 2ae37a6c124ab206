"""What the services share: events, event bus, outbox, inbox, object store, settings, telemetry."""
