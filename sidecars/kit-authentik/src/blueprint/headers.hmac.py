

def headers():
    key, body = secret(), guarded(envelope, None)
    if not key or body is None:
        return {}
    sent = json.dumps(body, allow_nan=False).encode()
    return {"@SIGNATURE_HEADER@": "@SIGNATURE_PREFIX@" + hmac.new(key.encode(), sent, hashlib.sha256).hexdigest()}


return guarded(headers, {})
