"""How fast a model generates and how big it is while it does, each model in a process of its own."""
