"""What the daemon needs of a broker, and who provides it."""
