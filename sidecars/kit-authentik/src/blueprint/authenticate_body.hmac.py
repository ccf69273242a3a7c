    key = secret()
    if key:
        # The text that this very member will be in the body.
        event_text = json.dumps(result["event"], allow_nan=False)
        signed = "\n".join(["@CANONICAL_VERSION@", result["nonce"], event_text])
        result["signature"] = hmac.new(key.encode(), signed.encode(), hashlib.sha256).hexdigest()
