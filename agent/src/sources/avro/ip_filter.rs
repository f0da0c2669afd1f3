//! `ipFilterRules`: who may connect.
//!
//! Rules are `allow|deny:ip|name:pattern`, separated by commas; the first that matches decides, and a list in which
//! none matches lets the peer in, as Flume does. `*` stands for any characters and `?` for one. Host names are looked
//! up only when a rule asks for one; whoever controls the reverse lookup of an address controls that answer.

use std::net::IpAddr;

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct IpFilter {
    rules: Vec<Rule>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Rule {
    allow: bool,
    subject: Subject,
    pattern: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Subject {
    Ip,
    Name,
    /// `name:localhost` needs no lookup: the loopback addresses.
    Localhost,
}

impl IpFilter {
    /// Reads the rules, or says what is wrong with the first wrong one.
    pub(super) fn parse(text: &str) -> Result<IpFilter, String> {
        let rules: Result<Vec<Rule>, String> = text.split(',').map(|rule| parse_rule(rule.trim())).collect();
        Ok(IpFilter { rules: rules? })
    }

    /// Whether a peer may connect. Blocks while a name is looked up: not for an async worker unless `needs_names`
    /// says no.
    pub(super) fn allows(&self, peer: IpAddr) -> bool {
        let mut name = None;
        self.allows_with(peer, || {
            let look_up = || dns_lookup::lookup_addr(&peer.to_canonical()).unwrap_or_else(|_| java_text(peer));
            name.get_or_insert_with(look_up).clone()
        })
    }

    pub(super) fn needs_names(&self) -> bool {
        self.rules.iter().any(|rule| rule.subject == Subject::Name)
    }

    fn allows_with(&self, peer: IpAddr, mut name: impl FnMut() -> String) -> bool {
        let matching = self.rules.iter().find(|rule| match rule.subject {
            Subject::Localhost => peer.to_canonical().is_loopback(),
            Subject::Ip => {
                glob(&rule.pattern, &java_text(peer)) || glob(&rule.pattern, &peer.to_canonical().to_string())
            }
            Subject::Name => glob(&rule.pattern, &name()),
        });
        matching.is_none_or(|rule| rule.allow)
    }
}

fn parse_rule(rule: &str) -> Result<Rule, String> {
    let form = "a rule looks like allow:ip:10.1.* or deny:name:*.example.org";
    let mut parts = rule.splitn(3, ':');
    let (Some(access), Some(subject), Some(pattern)) = (parts.next(), parts.next(), parts.next()) else {
        return Err(format!("`{rule}` is no rule; {form}"));
    };
    let allow = match access {
        "allow" => true,
        "deny" => false,
        _ => return Err(format!("`{rule}` begins with neither allow nor deny; {form}")),
    };
    let subject = match (subject, pattern) {
        ("ip", _) => Subject::Ip,
        ("name", "localhost") => Subject::Localhost,
        ("name", _) => Subject::Name,
        _ => return Err(format!("`{rule}` asks for neither ip nor name; {form}")),
    };
    if let Some(other) = pattern.chars().find(|found| "[](){}|+^$\\".contains(*found)) {
        return Err(format!("`{rule}`: `{other}` is not supported in a pattern, only * and ?; {form}"));
    }
    Ok(Rule { allow, subject, pattern: pattern.to_owned() })
}

/// An address as Java's `getHostAddress` writes it: eight groups, none left out.
fn java_text(address: IpAddr) -> String {
    match address.to_canonical() {
        IpAddr::V4(address) => address.to_string(),
        IpAddr::V6(address) => address.segments().map(|segment| format!("{segment:x}")).join(":"),
    }
}

/// Whether all of `text` matches `pattern`. In time that grows with the product of the lengths.
fn glob(pattern: &str, text: &str) -> bool {
    let (pattern, text): (Vec<char>, Vec<char>) = (pattern.chars().collect(), text.chars().collect());
    let (mut at, mut from) = (0, 0);
    // Where the last `*` was, and how much of the text it has taken so far.
    let mut star: Option<(usize, usize)> = None;
    while from < text.len() {
        match pattern.get(at) {
            Some('*') => {
                star = Some((at, from));
                at += 1;
            }
            Some(&wanted) if wanted == '?' || wanted == text[from] => {
                at += 1;
                from += 1;
            }
            _ => match star {
                Some((star_at, taken)) => {
                    star = Some((star_at, taken + 1));
                    at = star_at + 1;
                    from = taken + 1;
                }
                None => return false,
            },
        }
    }
    pattern[at..].iter().all(|rest| *rest == '*')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(rules: &str, peer: &str, name: &str) -> bool {
        IpFilter::parse(rules).unwrap().allows_with(peer.parse().unwrap(), || name.to_owned())
    }

    #[test]
    fn the_first_rule_that_matches_decides_and_none_lets_in() {
        assert!(!check("deny:ip:127.0.0.1,allow:ip:*", "127.0.0.1", ""));
        assert!(check("allow:ip:127.*, deny:ip:*", "127.0.0.1", ""));
        assert!(!check("allow:ip:127.*,deny:ip:*", "10.0.0.1", ""));
        assert!(check("allow:ip:10.*", "127.0.0.1", ""));
        assert!(!check("deny:ip:10.0.0.?", "10.0.0.7", ""));
        assert!(check("deny:ip:10.0.0.?", "10.0.0.70", ""));
    }

    #[test]
    fn a_dot_is_a_dot_and_ipv6_may_be_written_in_both_forms() {
        assert!(check("deny:ip:1.2.3.4", "1.213.4.4", ""));
        assert!(!check("deny:ip:0:0:0:0:0:0:0:1", "::1", ""));
        assert!(!check("deny:ip:::1", "::1", ""));
        assert!(!check("deny:ip:10.1.*", "::ffff:10.1.2.3", ""));
    }

    #[test]
    fn names_are_asked_for_only_by_rules_about_names() {
        assert!(!check("deny:name:*.example.org", "10.0.0.1", "a.example.org"));
        assert!(check("deny:name:*.example.org", "10.0.0.1", "a.example.net"));
        assert!(!check("deny:name:localhost", "127.0.0.1", "unused"));
        let filter = IpFilter::parse("deny:ip:10.*,deny:name:localhost").unwrap();
        assert!(!filter.needs_names());
        assert!(filter.allows_with("11.0.0.1".parse().unwrap(), || panic!("no lookup")));
    }

    #[test]
    fn a_wrong_rule_is_refused_by_its_text() {
        for rule in ["", "allow", "allow:ip", "permit:ip:*", "allow:host:x", "allow:ip:(1|2).*", "allow:ip:*,,"] {
            let error = IpFilter::parse(rule).unwrap_err();
            assert!(error.contains("allow:ip:10.1.*"), "{rule}: {error}");
        }
    }
}
