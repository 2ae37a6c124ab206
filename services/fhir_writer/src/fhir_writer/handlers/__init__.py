"""Use cases: events and requests in, changes of the schedule and deliveries out."""
