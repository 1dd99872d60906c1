"""The command line of the load tester: commands, options, sessions, progress."""
