package compose

import (
	"github.com/berth-project/berth/cli/compose/remote"
	"github.com/berth-project/berth/format/compose"
)

// remotes fetch what include, extends and --file name on other machines.
func (t *tool) remotes() []compose.Remote {
	login := func(registry string) (user, password string) {
		auth, err := t.docker.ConfigFile().GetAuthConfig(authKey(registry))
		if err != nil {
			return "", "" // nobody logged in there: ask without
		}
		return auth.Username, auth.Password
	}
	return []compose.Remote{remote.NewGit(""), remote.NewOCI("", t.insecure, login)}
}
