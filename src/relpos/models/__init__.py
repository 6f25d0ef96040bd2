"""Ready networks made of mixers."""
