"""A table of flights: at take-off, will this flight arrive more than 15 minutes late?"""
