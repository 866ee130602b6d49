"""What happened, as data: the records that the verbs return and the files in an output directory hold."""
