"""The equation's wing: from a problem to u on a grid."""
