"""Parameters on sharded actors: ranges of one flat vector, the algebra on them, and the ways in and out."""
