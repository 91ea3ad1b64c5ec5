"""An NVTabular workflow beside a model in Triton, for images that have NVTabular."""
