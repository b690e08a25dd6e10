"""The alternatives, each as well written as its library allows."""
