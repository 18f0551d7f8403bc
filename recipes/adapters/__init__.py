"""PEFT methods that PEFT lacks; importing this package registers them."""
