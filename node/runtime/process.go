package runtime

import (
	"fmt"
	"path"
	"slices"
	"strings"
)

// defaultPath is what a process gets when neither image nor pod set PATH.
const defaultPath = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// Process is what a container executes: image and configuration merged.
type Process struct {
	Args       []string
	Env        []string
	WorkingDir string
	// User is the image's user unless RunAsUser replaces it; it may be a name
	// that only the container's /etc/passwd can resolve.
	User string
}

// Process merges the image's defaults with the pod's wishes, as Kubernetes does.
func (c ContainerConfig) Process(hostname string) (Process, error) {
	p := Process{Args: c.argv(), WorkingDir: c.workingDir(), User: c.user()}
	if len(p.Args) == 0 || p.Args[0] == "" {
		return Process{}, c.invalid("neither the pod nor image %s names a command", c.Image.Digest)
	}
	if !path.IsAbs(p.WorkingDir) {
		return Process{}, c.invalid("working directory %q: want an absolute path", p.WorkingDir)
	}
	env, err := MergeEnv(append([]string{defaultPath, "HOSTNAME=" + hostname}, c.Image.Env...), c.Env)
	if err != nil {
		return Process{}, c.invalid("%w", err)
	}
	p.Env = env
	return p, nil
}

func (c ContainerConfig) argv() []string {
	switch {
	case len(c.Command) > 0:
		return slices.Concat(c.Command, c.Args)
	case len(c.Args) > 0:
		return slices.Concat(c.Image.Entrypoint, c.Args)
	default:
		return slices.Concat(c.Image.Entrypoint, c.Image.Cmd)
	}
}

func (c ContainerConfig) workingDir() string {
	for _, dir := range []string{c.WorkingDir, c.Image.WorkingDir} {
		if dir != "" {
			return dir
		}
	}
	return "/"
}

func (c ContainerConfig) user() string {
	user, group, _ := strings.Cut(c.Image.User, ":")
	if c.Security.RunAsUser != nil {
		user, group = fmt.Sprint(*c.Security.RunAsUser), ""
	}
	if c.Security.RunAsGroup != nil {
		group = fmt.Sprint(*c.Security.RunAsGroup)
	}
	if group == "" {
		return user
	}
	return user + ":" + group
}

// MergeEnv appends vars to base ("NAME=value"). A later value replaces an
// earlier one in its place, so that the order is that of first mention.
func MergeEnv(base []string, vars []EnvVar) ([]string, error) {
	out := make([]string, 0, len(base)+len(vars))
	at := make(map[string]int, len(base)+len(vars))
	set := func(name, value string) error {
		if name == "" || strings.ContainsAny(name, "=\x00") || strings.ContainsRune(value, 0) {
			return fmt.Errorf("environment variable %q: the name must not be empty nor hold '=' or NUL, the value no NUL", name)
		}
		if i, ok := at[name]; ok {
			out[i] = name + "=" + value
			return nil
		}
		at[name] = len(out)
		out = append(out, name+"="+value)
		return nil
	}
	for _, entry := range base {
		name, value, _ := strings.Cut(entry, "=")
		if err := set(name, value); err != nil {
			return nil, err
		}
	}
	for _, v := range vars {
		if err := set(v.Name, v.Value); err != nil {
			return nil, err
		}
	}
	return out, nil
}
