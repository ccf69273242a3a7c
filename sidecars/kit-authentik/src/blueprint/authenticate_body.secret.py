    key = secret()
    if key:
        result["secret"] = key
