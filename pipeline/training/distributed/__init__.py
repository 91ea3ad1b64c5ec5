"""Training in several processes, with whole or sharded item tables."""
