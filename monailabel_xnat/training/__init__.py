"""Training sets: pairs of image and label, a record of each set, and the choice of the images to label next."""
