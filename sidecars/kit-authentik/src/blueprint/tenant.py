# The tenant of who logs in: the attribute of the user, else the one that the groups agree on, by attribute or by name.
# Where they do not there is no claim, and whoever reads the token has to refuse it.
import re

try:
    tenants = {(user.attributes or {}).get("@ATTRIBUTE@")}
    if not any(tenants):
        tenants = set()
        for group in user.all_groups():
            named = re.fullmatch(r"@REGEX@", group.name)
            tenants.add((group.attributes or {}).get("@ATTRIBUTE@") or (named and named.group(1)))
    tenants = [tenant for tenant in tenants if isinstance(tenant, str) and tenant]
except Exception as error:
    ak_logger.warning("outrigger: the tenant cannot be read", error=type(error).__name__)
    tenants = []
return {"tenant_id": tenants[0]} if len(tenants) == 1 else {}
