"""From a recipe to a merged model."""
