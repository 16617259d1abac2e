package volume

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"

	"golang.org/x/sys/unix"

	"github.com/balsa-run/balsa/internal/hostmount"
	"github.com/balsa-run/balsa/node/runtime"
)

const (
	folderData  = "data"
	folderMount = "mount"
	folderUsers = "users"
	fileImage   = "image"

	fsTypeExt4 = "ext4"
	// minExt4Bytes is what mkfs.ext4 needs for a journal and a few files.
	minExt4Bytes = 8 << 20
	// loopTries bounds the race for a free loop device with other programs.
	loopTries = 32
	loopName  = 64
	// shared is written into a user's file once the contents are the pod's.
	shared = "shared"
)

func (s *Store) persistentDir(name string) string {
	return filepath.Join(s.dir, folderPersistent, name)
}

// persistent makes a volume that outlives the pod, the first time, and mounts it.
func (s *Store) persistent(ctx context.Context, pod Pod, want Persistent) (string, error) {
	if err := checkName(want.Name); err != nil {
		return "", fmt.Errorf("persistent volume %q: %w", want.Name, err)
	}
	defer s.turns.take("volume/" + want.Name)()
	path, err := s.attach(ctx, pod.UID, want)
	if err != nil {
		return "", fmt.Errorf("persistent volume %s: %w", want.Name, err)
	}
	user := filepath.Join(s.persistentDir(want.Name), folderUsers, string(pod.UID))
	if done, err := os.ReadFile(user); err == nil && string(done) == shared {
		return path, nil
	}
	if !want.ReadOnly {
		if err := shareWithGroup(path, pod); err != nil {
			return "", fmt.Errorf("persistent volume %s: %w", want.Name, err)
		}
	}
	return path, os.WriteFile(user, []byte(shared), 0o600)
}

// attach notes the user, before anything is mounted for it, and returns where the
// contents are.
func (s *Store) attach(ctx context.Context, uid runtime.PodUID, want Persistent) (string, error) {
	dir := s.persistentDir(want.Name)
	if err := os.MkdirAll(filepath.Join(dir, folderUsers), dirMode); err != nil {
		return "", err
	}
	user, err := os.OpenFile(filepath.Join(dir, folderUsers, string(uid)), os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return "", err
	}
	if err := user.Close(); err != nil {
		return "", err
	}
	switch {
	case want.Path != "":
		return want.Path, HostPath{Path: want.Path, Type: HostPathDirectory}.check()
	case want.FSType == "":
		path := filepath.Join(dir, folderData)
		return path, makeOpen(path)
	case want.FSType == fsTypeExt4:
		return s.mountExt4(ctx, dir, want)
	}
	return "", fmt.Errorf("file system %q is not known; known: ext4, or none for a folder", want.FSType)
}

// makeOpen makes a folder that everybody in the pod may write to.
func makeOpen(path string) error {
	if _, err := os.Stat(path); err == nil {
		return nil
	}
	fresh := path + ".new"
	if err := os.MkdirAll(fresh, dirMode); err != nil {
		return err
	}
	if err := os.Chmod(fresh, openMode); err != nil {
		return err
	}
	return os.Rename(fresh, path)
}

// mountExt4 mounts the volume's image. Its contents are in a folder, so that
// programs that want an empty one do not find lost+found.
func (s *Store) mountExt4(ctx context.Context, dir string, want Persistent) (string, error) {
	image, point := filepath.Join(dir, fileImage), filepath.Join(dir, folderMount)
	if err := os.MkdirAll(point, dirMode); err != nil {
		return "", err
	}
	mounted, err := hostmount.IsMounted(point)
	if err != nil {
		return "", err
	}
	if !mounted {
		if err := s.makeImage(ctx, image, want); err != nil {
			return "", err
		}
		if err := mountLoop(image, point); err != nil {
			return "", err
		}
	}
	path := filepath.Join(point, folderData)
	return path, makeOpen(path)
}

// makeImage makes the file system in a sparse file, under another name until it
// is whole and on disk. Its blocks are taken as they are written, but a volume
// that would not fit today is refused today.
func (s *Store) makeImage(ctx context.Context, image string, want Persistent) error {
	if _, err := os.Stat(image); err == nil {
		return nil
	}
	size := max(want.SizeBytes, minExt4Bytes)
	if err := hasRoom(filepath.Dir(image), size); err != nil {
		return err
	}
	fresh := image + ".new"
	file, err := os.OpenFile(fresh, os.O_CREATE|os.O_TRUNC|os.O_RDWR, 0o600)
	if err != nil {
		return err
	}
	defer file.Close()
	if err := file.Truncate(size); err != nil {
		return err
	}
	if err := mkfs(ctx, fresh); err != nil {
		return err
	}
	if err := file.Sync(); err != nil {
		return err
	}
	s.log.Info("made a persistent volume", "volume", want.Name, "fsType", want.FSType, "bytes", size)
	return os.Rename(fresh, image)
}

func mkfs(ctx context.Context, image string) error {
	// No reserved blocks: root has no claim on a pod's volume. No discard: the
	// file is sparse already.
	out, err := exec.CommandContext(ctx, "mkfs.ext4", "-q", "-F", "-m", "0", "-E", "nodiscard", image).CombinedOutput()
	if errors.Is(err, exec.ErrNotFound) {
		return fmt.Errorf("the node has no mkfs.ext4: install e2fsprogs, or use a storage class of type directory: %w", err)
	}
	if err != nil {
		return fmt.Errorf("mkfs.ext4: %w: %s", err, bytes.TrimSpace(out))
	}
	return nil
}

func hasRoom(dir string, size int64) error {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return err
	}
	if room := int64(st.Bavail) * st.Bsize; room < size {
		return fmt.Errorf("%w: it asks for %d bytes and %s has %d", ErrNoSpace, size, dir, room)
	}
	return nil
}

// mountLoop mounts an image through a loop device that frees itself when it is
// unmounted.
func mountLoop(image, point string) error {
	file, err := os.OpenFile(image, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer file.Close()
	device, err := attachLoop(file)
	if err != nil {
		return fmt.Errorf("loop device for %s: %w", image, err)
	}
	defer device.Close() // the mount holds it
	if err := unix.Mount(device.Name(), point, fsTypeExt4, unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOATIME, "errors=remount-ro"); err != nil {
		return fmt.Errorf("mount %s at %s: %w", device.Name(), point, err)
	}
	return nil
}

func attachLoop(image *os.File) (*os.File, error) {
	control, err := os.OpenFile("/dev/loop-control", os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	defer control.Close()
	for range loopTries {
		n, err := unix.IoctlRetInt(int(control.Fd()), unix.LOOP_CTL_GET_FREE)
		if err != nil {
			return nil, fmt.Errorf("no free loop device: %w", err)
		}
		device, err := configureLoop(n, image)
		if errors.Is(err, unix.EBUSY) {
			continue // somebody was faster
		}
		return device, err
	}
	return nil, fmt.Errorf("somebody else took the free loop device %d times", loopTries)
}

func configureLoop(n int, image *os.File) (*os.File, error) {
	path := "/dev/loop" + strconv.Itoa(n)
	device, err := os.OpenFile(path, os.O_RDWR, 0)
	if errors.Is(err, fs.ErrNotExist) { // without devtmpfs nobody else makes it
		const loopMajor = 7
		if err := unix.Mknod(path, unix.S_IFBLK|0o600, int(unix.Mkdev(loopMajor, uint32(n)))); err != nil && !errors.Is(err, fs.ErrExist) {
			return nil, fmt.Errorf("make %s: %w", path, err)
		}
		device, err = os.OpenFile(path, os.O_RDWR, 0)
	}
	if err != nil {
		return nil, err
	}
	config := unix.LoopConfig{Fd: uint32(image.Fd()), Info: unix.LoopInfo64{Flags: unix.LO_FLAGS_AUTOCLEAR}}
	copy(config.Info.File_name[:loopName-1], image.Name())
	if err := unix.IoctlLoopConfigure(int(device.Fd()), &config); err != nil {
		return nil, errors.Join(err, device.Close())
	}
	return device, nil
}

// letGo ends a pod's use of persistent volumes.
func (s *Store) letGo(uid runtime.PodUID) error {
	entries, err := os.ReadDir(filepath.Join(s.dir, folderPersistent))
	if err != nil {
		return err
	}
	for _, e := range entries {
		if err := s.letGoOf(e.Name(), uid); err != nil {
			return fmt.Errorf("persistent volume %s: %w", e.Name(), err)
		}
	}
	return nil
}

func (s *Store) letGoOf(name string, uid runtime.PodUID) error {
	dir := s.persistentDir(name)
	user := filepath.Join(dir, folderUsers, string(uid))
	if _, err := os.Lstat(user); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	defer s.turns.take("volume/" + name)()
	users, err := os.ReadDir(filepath.Join(dir, folderUsers))
	if err != nil {
		return err
	}
	if len(users) == 1 {
		// Before the user is forgotten: else a crash here leaves it mounted for ever.
		if err := hostmount.UnmountUnder(filepath.Join(dir, folderMount)); err != nil {
			return err
		}
	}
	return os.Remove(user)
}

// Persistent implements Volumes.
func (s *Store) Persistent(context.Context) ([]Stored, error) { return s.stored() }

func (s *Store) stored() ([]Stored, error) {
	entries, err := os.ReadDir(filepath.Join(s.dir, folderPersistent))
	if err != nil {
		return nil, fmt.Errorf("persistent volumes: %w", err)
	}
	out := make([]Stored, 0, len(entries))
	for _, e := range entries { // ReadDir sorts
		v := Stored{Name: e.Name()}
		if info, err := os.Stat(filepath.Join(s.persistentDir(e.Name()), fileImage)); err == nil {
			v.SizeBytes = info.Size()
		}
		if v.UsedBy, err = s.users(e.Name()); err != nil {
			return nil, err
		}
		out = append(out, v)
	}
	return out, nil
}

func (s *Store) users(name string) ([]runtime.PodUID, error) {
	entries, err := os.ReadDir(filepath.Join(s.persistentDir(name), folderUsers))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("persistent volume %s: %w", name, err)
	}
	var uids []runtime.PodUID
	for _, e := range entries {
		uids = append(uids, runtime.PodUID(e.Name()))
	}
	return uids, nil
}

// Delete implements Volumes. A path that an administrator made is not touched.
func (s *Store) Delete(_ context.Context, name string) error {
	if err := checkName(name); err != nil {
		return fmt.Errorf("persistent volume %q: %w", name, err)
	}
	defer s.turns.take("volume/" + name)()
	users, err := s.users(name)
	if err != nil {
		return err
	}
	if len(users) > 0 {
		return fmt.Errorf("persistent volume %s: %w by pod %s", name, ErrInUse, users[0])
	}
	dir := s.persistentDir(name)
	if err := hostmount.UnmountUnder(dir); err != nil {
		return fmt.Errorf("persistent volume %s: %w", name, err)
	}
	// Renamed first: half a volume must never be found under its name.
	removing := filepath.Join(s.dir, prefixRemoving+name)
	if err := s.destroy(removing); err != nil { // an earlier try's
		return err
	}
	if err := os.Rename(dir, removing); err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		return fmt.Errorf("persistent volume %s: %w", name, err)
	}
	return s.destroy(removing)
}

func (s *Store) destroy(dir string) error {
	if err := hostmount.UnmountUnder(dir); err != nil {
		return err
	}
	if err := os.RemoveAll(dir); err != nil {
		return fmt.Errorf("volumes: %w", err)
	}
	return nil
}
