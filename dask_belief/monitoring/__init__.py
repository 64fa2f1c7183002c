"""What a run tells while it lasts: events, and what listens to them.

A run makes `events` (frozen records) and hands each to its `callbacks`. The history and the progress line are callbacks
like any other. Nothing here asks anything of the run but whether to stop it.
"""
