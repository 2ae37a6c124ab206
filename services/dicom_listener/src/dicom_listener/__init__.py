"""C-STORE SCP that publishes completed studies."""
