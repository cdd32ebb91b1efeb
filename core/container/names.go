package container

import (
	"fmt"
	"math/rand/v2"
	"regexp"

	"github.com/berth-project/berth/lib/fault"
)

var validName = regexp.MustCompile(`^/?[a-zA-Z0-9][a-zA-Z0-9_.-]+$`)

// take reserves a name for an id; "" chooses a pair of words.
func (s *Service) take(name string, id ID) (string, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if name == "" {
		for i := 0; ; i++ {
			name = words[0][rand.IntN(len(words[0]))] + "_" + words[1][rand.IntN(len(words[1]))]
			if i > 20 {
				name += fmt.Sprint(rand.IntN(10_000))
			}
			if _, taken := s.byName[name]; !taken {
				s.byName[name] = id
				return name, nil
			}
		}
	}
	if !validName.MatchString(name) {
		return "", fault.Invalidf("Invalid container name (%s), only [a-zA-Z0-9][a-zA-Z0-9_.-] are allowed", name)
	}
	if name[0] == '/' {
		name = name[1:]
	}
	if holder, taken := s.byName[name]; taken {
		return "", fault.Conflictf("Conflict. The container name %q is already in use by container %q. You have to remove (or rename) that container to be able to reuse that name.", "/"+name, holder)
	}
	s.byName[name] = id
	return name, nil
}

func (s *Service) giveBack(name string, id ID) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.byName[name] == id {
		delete(s.byName, name)
	}
}

// words make names that people can say: a quality and something of the sea.
var words = [2][]string{
	{
		"able", "amber", "ample", "azure", "brave", "breezy", "bright", "brisk", "broad", "calm", "candid", "clear", "clever", "coastal",
		"copper", "coral", "cosy", "crisp", "deep", "eager", "early", "even", "fair", "famous", "fleet", "fresh", "gentle", "glad", "golden",
		"grand", "green", "happy", "hardy", "humble", "ivory", "jolly", "keen", "kind", "late", "light", "lively", "loyal", "lucid", "lucky",
		"mellow", "mighty", "misty", "modest", "neat", "nimble", "noble", "northern", "open", "patient", "placid", "polite", "proud", "quick",
		"quiet", "rapid", "ready", "royal", "rustic", "salty", "sandy", "serene", "sharp", "shining", "silent", "silver", "smooth", "snowy",
		"solid", "southern", "stable", "steady", "still", "stout", "sturdy", "sunny", "swift", "tidal", "tidy", "tranquil", "true", "upbeat",
		"vast", "vivid", "warm", "wide", "wild", "windy", "wise", "witty", "young", "zesty",
	},
	{
		"albatross", "anchor", "atoll", "barge", "bay", "beacon", "bollard", "boom", "bow", "breeze", "brig", "buoy", "cabin", "canal", "cape",
		"capstan", "captain", "cargo", "channel", "clipper", "coast", "compass", "cove", "crane", "crew", "cutter", "deck", "delta", "dinghy",
		"dock", "dolphin", "dory", "dune", "eddy", "estuary", "ferry", "fjord", "fleet", "foam", "frigate", "galleon", "galley", "gull", "gulf",
		"halyard", "harbour", "hatch", "heron", "horizon", "hull", "inlet", "island", "jetty", "kelp", "ketch", "keel", "lagoon", "lantern",
		"lighthouse", "lugger", "marina", "mast", "mooring", "navigator", "oar", "ocean", "osprey", "otter", "packet", "pelican", "pier",
		"pilot", "port", "prow", "puffin", "quay", "raft", "reef", "rigging", "rudder", "sail", "sailor", "schooner", "seal", "sextant", "shoal",
		"shore", "skiff", "sloop", "spar", "starboard", "stern", "strait", "surf", "tern", "tide", "tiller", "trawler", "tug", "voyage", "wave",
		"wharf", "whale", "winch", "yacht",
	},
}
