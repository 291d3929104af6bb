"""What is measured on one completion: small pure functions, each with its definition, unit and source.

`gold` is the completion that the user accepted, `predicted` what the model wrote in the same place.
"""
