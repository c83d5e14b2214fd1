"""Files of models from the Hugging Face hub, as `source.json` of a model's folder lists them."""
