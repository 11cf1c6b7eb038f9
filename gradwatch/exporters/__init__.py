"""Ways in which what the host knows leaves the process: Prometheus, the live page, TensorBoard, messages, pushes."""
