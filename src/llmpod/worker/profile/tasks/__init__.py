"""JSON tasks of a profile: named requests with a schema, and rules on the answer that no grammar can express.

Pure functions on plain data: the answer's text in, the object and its issues out.
"""
