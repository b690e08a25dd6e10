"""What people would use otherwise, each as well written as its library allows."""
