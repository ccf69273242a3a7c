    key = secret()
    if key:
        signed = "\n".join(
            ["@CANONICAL_VERSION@", identity.replace("-", ""), result["event"]["action"], result["event"]["created"], result["nonce"]]
        )
        result["signature"] = hmac.new(key.encode(), signed.encode(), hashlib.sha256).hexdigest()
