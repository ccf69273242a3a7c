

def headers():
    key = secret()
    if not key:
        say("there is no secret to show; set it for server and worker", file="@SECRET_FILE@")
    return {"Authorization": "@BEARER_PREFIX@" + key} if key else {}


return guarded(headers, {})
