"""What models are trained on: pairs of image and label, and a record of which they were."""
