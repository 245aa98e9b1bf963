"""The life of a stack: up and down, its number of replicas, its versions, its way to another host."""
