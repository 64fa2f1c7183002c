"""A table of flights: whether a flight will arrive more than 15 minutes late, asked at take-off."""
