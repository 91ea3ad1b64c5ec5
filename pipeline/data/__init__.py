"""A data directory: schema, fitted state, fingerprint, batches, session loader."""
