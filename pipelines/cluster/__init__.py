"""A Ray of our own or one that is joined; what the machine and the cluster have; malloc; the doctor.

May import: pipelines.config, model.
"""
