

def headers():
    key = secret()
    return {"Authorization": "@BEARER_PREFIX@" + key} if key else {}


return guarded(headers, {})
