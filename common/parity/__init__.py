"""The certificate: what is claimed about the implementations, how it is measured, by which rule it is judged."""
