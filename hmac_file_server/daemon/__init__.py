"""What runs: one process or several, listening, watched and stopped."""
