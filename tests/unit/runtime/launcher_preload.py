"""What launchers import in advance in tests."""
