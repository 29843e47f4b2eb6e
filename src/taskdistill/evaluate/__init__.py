"""Score embedding models on local evaluation sets, by protocols that agree with mteb."""
