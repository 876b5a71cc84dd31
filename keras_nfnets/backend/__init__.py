"""What depends on the device or on the internals of Keras. Imports nothing of ours."""
