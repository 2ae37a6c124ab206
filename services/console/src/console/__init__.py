"""Read model of all events and the web page for people."""
