//! The routes, compiled: which sinks an event goes to. No I/O and no jq; where a route has a program, whoever walks
//! the table brings its answer.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, PoisonError, RwLock};

use kit_journal::{EventHead, StoredEvent};
use wildmatch::WildMatch;

use crate::condition::{Condition, Looked};
use crate::config::{RouteSection, fits};
use crate::jq::PROGRAM_BYTES;

/// Routes at most: each is a label value.
const ROUTES: usize = 500;
/// Longest glob: types have 128 characters at most.
const GLOB_BYTES: usize = 512;
/// Types whose routes are remembered. Senders choose types, so that there may be any number.
const TYPES: usize = 1024;

/// Position of a sink in the list that the table was compiled with.
pub(crate) type SinkNumber = usize;

/// A jq program, shared by everything that asks it.
pub(crate) type Code = Arc<str>;

/// What becomes of an event at one sink.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    /// It is delivered, by this route or by the default one, changed by this program.
    Deliver {
        /// Number of the route; `None` is the default route.
        route: Option<usize>,
        /// The program that makes the event's data.
        transform: Option<Code>,
    },
    /// Other sinks get it.
    Filtered,
    /// No route and no default route leads here.
    Unrouted,
    /// This route gives it up.
    Dropped(usize),
}

/// How far a walk has come.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Walk {
    /// All the way.
    Done(Decision),
    /// To a route whose filter has to be asked.
    Asks(usize),
}

/// The compiled routes.
#[derive(Debug)]
pub struct Table {
    routes: Vec<Route>,
    sinks: Vec<String>,
    default: Vec<bool>,
    /// Number of the last route that drops.
    last_drop: Option<usize>,
    /// Routes whose types match, by type and alias: globs are looked at once for each type.
    by_type: RwLock<HashMap<String, Arc<[u16]>>>,
}

#[derive(Debug)]
struct Route {
    name: Arc<str>,
    globs: Vec<WildMatch>,
    when: Vec<Condition>,
    filter: Option<Code>,
    /// Sinks with their transforms; `None` drops.
    to: Option<BTreeMap<SinkNumber, Option<Code>>>,
}

impl Table {
    /// Compiles routes over these sinks; programs are only measured.
    ///
    /// # Errors
    /// Every mistake, each naming its route.
    pub fn compile(routes: &[RouteSection], default: &[String], sinks: &[String]) -> Result<Self, Vec<String>> {
        let mut mistakes = Vec::new();
        if routes.len() > ROUTES {
            mistakes.push(format!("must be at most {ROUTES} routes"));
        }
        let number = |name: &String| sinks.iter().position(|sink| sink == name);
        let unknown = |name: &str| format!("{name:?} is not a sink; there is {}", sinks.join(", "));
        let mut compiled: Vec<Route> = Vec::new();
        for (nth, section) in routes.iter().enumerate() {
            let named = format!("route {} ({})", nth + 1, section.name);
            let mut wrong = |text: &str| mistakes.push(format!("{named}: {text}"));
            if !fits(&section.name) {
                wrong("name must be 1 to 64 of a-z, 0-9, - and _");
            } else if compiled.iter().any(|route| *route.name == *section.name) {
                wrong("has the name of another route");
            }
            if section.drop != section.to.is_empty() {
                wrong("must have either sinks in to, or drop = true");
            }
            for name in section.to.iter().filter(|name| number(name).is_none()) {
                wrong(&unknown(name));
            }
            for name in section.transform.keys().filter(|name| !section.to.contains(name)) {
                wrong(&format!("transform.{name} is for a sink that is not in to"));
            }
            for (what, program) in programs_of(section) {
                if program.len() > PROGRAM_BYTES {
                    wrong(&format!("{what} is longer than {PROGRAM_BYTES} bytes"));
                }
            }
            for glob in &section.types {
                if let Some(mistake) = glob_mistake(glob) {
                    wrong(&mistake);
                }
            }
            let mut when = Vec::new();
            for (nth, condition) in section.when.iter().enumerate() {
                match Condition::compile(condition) {
                    Ok(condition) => when.push(condition),
                    Err(mistake) => wrong(&format!("condition {}: {mistake}", nth + 1)),
                }
            }
            let transform = |name: &String| section.transform.get(name).map(|code| Code::from(code.as_str()));
            let to = section.to.iter().filter_map(|name| Some((number(name)?, transform(name))));
            compiled.push(Route {
                name: section.name.as_str().into(),
                globs: section.types.iter().map(|glob| WildMatch::new(glob)).collect(),
                when,
                filter: section.filter.as_deref().map(Code::from),
                to: (!section.drop).then(|| to.collect()),
            });
        }
        for name in default.iter().filter(|name| number(name).is_none()) {
            mistakes.push(format!("default_route: {}", unknown(name)));
        }
        if !mistakes.is_empty() {
            return Err(mistakes);
        }
        Ok(Self {
            last_drop: compiled.iter().rposition(|route| route.to.is_none()),
            routes: compiled,
            default: sinks.iter().map(|sink| default.is_empty() || default.contains(sink)).collect(),
            sinks: sinks.to_vec(),
            by_type: RwLock::default(),
        })
    }

    /// What becomes of an event at a sink. `answer` tells what the filter of a route says about it, where that is
    /// known; a filter is asked for only where it changes anything for this sink.
    pub fn walk(&self, sink: SinkNumber, event: &StoredEvent, answer: impl Fn(usize) -> Option<bool>) -> Walk {
        self.walk_on(sink, &Looked::new(event), answer)
    }

    /// As [`Self::walk`], for an event that was looked at before: its body is parsed once, however often it goes on after
    /// a filter was asked.
    pub(crate) fn walk_on(
        &self,
        sink: SinkNumber,
        looked: &Looked<'_>,
        answer: impl Fn(usize) -> Option<bool>,
    ) -> Walk {
        let event = looked.event();
        let by_default = self.default.get(sink).copied().unwrap_or(false);
        let mut matched = false;
        for nth in self.candidates(&event.head).iter().map(|nth| usize::from(*nth)) {
            let route = &self.routes[nth];
            let transform = route.to.as_ref().map(|to| to.get(&sink));
            let leads_here = matches!(transform, Some(Some(_)));
            // Another sink's route, or a drop, says nothing new about an event that is taken care of.
            if matched && !leads_here {
                continue;
            }
            if !route.when.iter().all(|condition| condition.holds(looked)) {
                continue;
            }
            if route.filter.is_some() {
                let matters = leads_here || transform.is_none() || by_default || self.last_drop > Some(nth);
                match answer(nth) {
                    _ if !matters => continue,
                    None => return Walk::Asks(nth),
                    Some(false) => continue,
                    Some(true) => {}
                }
            }
            matched = true;
            match transform {
                None => return Walk::Done(Decision::Dropped(nth)),
                Some(Some(transform)) => {
                    return Walk::Done(Decision::Deliver { route: Some(nth), transform: transform.clone() });
                }
                Some(None) => {}
            }
        }
        Walk::Done(match (matched, by_default) {
            (true, _) => Decision::Filtered,
            (false, true) => Decision::Deliver { route: None, transform: None },
            (false, false) => Decision::Unrouted,
        })
    }

    /// Numbers of the routes whose types match.
    fn candidates(&self, head: &EventHead) -> Arc<[u16]> {
        let alias = head.alias.as_deref();
        let joined = alias.map(|alias| format!("{}\n{alias}", head.event_type));
        let key = joined.as_deref().unwrap_or(&head.event_type);
        if let Some(known) = self.by_type.read().unwrap_or_else(PoisonError::into_inner).get(key) {
            return Arc::clone(known);
        }
        let matches =
            |glob: &WildMatch| glob.matches(&head.event_type) || alias.is_some_and(|alias| glob.matches(alias));
        let found: Arc<[u16]> = (0_u16..)
            .zip(&self.routes)
            .filter(|(_, route)| route.globs.is_empty() || route.globs.iter().any(matches))
            .map(|(nth, _)| nth)
            .collect();
        let mut known = self.by_type.write().unwrap_or_else(PoisonError::into_inner);
        if known.len() < TYPES && key.len() <= GLOB_BYTES {
            known.insert(key.to_owned(), Arc::clone(&found));
        }
        found
    }

    /// The program of a route's filter.
    pub fn filter(&self, route: usize) -> Option<Code> {
        self.routes.get(route)?.filter.clone()
    }

    /// A route's name; the default route's where there is no number.
    pub fn name(&self, route: Option<usize>) -> &str {
        route.and_then(|nth| self.routes.get(nth)).map_or(DEFAULT, |route| &route.name)
    }

    /// Names of the routes, in order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.routes.iter().map(|route| &*route.name)
    }

    /// Names of the sinks, by their numbers.
    pub fn sinks(&self) -> &[String] {
        &self.sinks
    }

    /// Whether a route has a program.
    pub fn has_programs(&self) -> bool {
        let transforms = |route: &Route| route.to.iter().flatten().any(|(_, transform)| transform.is_some());
        self.routes.iter().any(|route| route.filter.is_some() || transforms(route))
    }

    /// Whether a route, or the default one, leads to a sink.
    pub(crate) fn leads(&self, route: &str, sink: &str) -> bool {
        let Some(number) = self.sinks.iter().position(|name| name == sink) else { return false };
        match self.routes.iter().find(|known| *known.name == *route) {
            Some(route) => route.to.as_ref().is_some_and(|to| to.contains_key(&number)),
            None => self.default[number],
        }
    }

    /// Whether a route gives events up.
    pub(crate) fn drops(&self, route: &str) -> bool {
        self.routes.iter().any(|known| *known.name == *route && known.to.is_none())
    }

    /// Why a route does not match, filter aside; `None` where it does.
    pub fn why_not(&self, route: usize, event: &StoredEvent) -> Option<String> {
        let route = self.routes.get(route)?;
        let (event_type, alias) = (&event.head.event_type, event.head.alias.as_deref());
        let matches = |glob: &WildMatch| glob.matches(event_type) || alias.is_some_and(|alias| glob.matches(alias));
        if !route.globs.is_empty() && !route.globs.iter().any(matches) {
            return Some(format!("type {event_type} matches none of its types"));
        }
        let looked = Looked::new(event);
        route.when.iter().find(|condition| !condition.holds(&looked)).map(|condition| condition.explain(&looked))
    }
}

/// Name of the default route, which no route can have.
pub(crate) const DEFAULT: &str = "default route";

/// Every program of a route, with what it is.
pub(crate) fn programs_of(route: &RouteSection) -> impl Iterator<Item = (String, &str)> {
    let filter = route.filter.iter().map(|code| ("filter".to_owned(), code.as_str()));
    filter.chain(route.transform.iter().map(|(sink, code)| (format!("transform.{sink}"), code.as_str())))
}

fn glob_mistake(glob: &str) -> Option<String> {
    if glob.is_empty() || glob.len() > GLOB_BYTES {
        return Some(format!("a type must have 1 to {GLOB_BYTES} bytes"));
    }
    let unusable = glob.chars().find(|c| "[]{}!\\,".contains(*c));
    unusable.map(|c| {
        format!("type {glob:?} is not a glob: only * and ? stand for other characters, {c:?} cannot be in a type")
    })
}

#[cfg(test)]
mod tests;
