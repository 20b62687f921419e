"""What a user runs at a terminal or in a browser: the command line and the demo."""
