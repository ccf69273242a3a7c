# Which events are sent at once; the poller brings the rest. What mappings, policies and tasks say about themselves is
# not among them: if one of those notifications failed it would be told about by another.
actions = {
@ACTIONS@
}
event = request.context.get("event")
if event is None:
    return False
action = str(event.action)
# What the sidecar itself changed through the API comes back as these.
if action.startswith("model_") and (event.user or {}).get("username") == "@SERVICE_ACCOUNT@":
    return False
return action in actions or action.startswith("custom_")
