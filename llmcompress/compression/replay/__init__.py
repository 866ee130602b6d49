"""The graph cache: what a checkpoint of one configuration became by a recipe, done again for the next one."""
