"""What to read first: models on faulty hardware, each script with its picture, in a minute."""
