

def headers():
    key = secret()
    return {"Authorization": "Bearer " + key} if key else {}


return guarded(headers, {})
