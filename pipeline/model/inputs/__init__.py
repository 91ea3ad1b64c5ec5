"""From features to interaction embeddings."""
