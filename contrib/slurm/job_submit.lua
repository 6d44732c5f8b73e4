-- Rounds the memory of jobs up to granules, on the controller. A job says how much memory its
-- guest has (--mem=20M), or how many granules (--gres=granule:3). It gets both: the granules,
-- and enough memory for them and for the processes around the guest. The environment of a batch
-- job has MKVMM_MEMORY, the memory that its guest can have.
--
-- Jobs of other partitions, and jobs with a pool of their own (--comment=own-pool), stay as they are.

-- The granule in MiB: that of `mkvmm serve --granule`.
local GRANULE = 8
-- What a job needs besides its guest, in MiB: the shell, the command, the guest's process, the
-- page tables.
local OVERHEAD = 16
-- No instance has more granules than this.
local MOST = 128
local PARTITION = "guests"

local function granules_of(text)
    if text == nil then
        return nil
    end
    local count = string.match(text, "granule[:=](%d+)")
    if count == nil and string.match(text, "granule") then
        return 1
    end
    return tonumber(count)
end

function slurm_job_submit(job, partitions, uid)
    local partition = job.partition or PARTITION
    if partition ~= PARTITION or job.comment == "own-pool" then
        return slurm.SUCCESS
    end
    local granules = granules_of(job.tres_per_node)
    local asked = job.min_mem_per_node
    if asked == slurm.NO_VAL64 then
        asked = nil
    end
    if granules == nil then
        if asked == nil or asked == 0 then
            slurm.log_user("mkvmm: say how much memory the guest has (--mem=20M)")
            return slurm.ERROR
        end
        granules = math.ceil(asked / GRANULE)
        local others = job.tres_per_node
        job.tres_per_node = (others and others .. "," or "") .. "gres:granule:" .. granules
    end
    if granules < 1 or granules > MOST then
        slurm.log_user("mkvmm: a guest has from 1 to %d granules of %d MiB, not %d", MOST, GRANULE, granules)
        return slurm.ERROR
    end
    local needed = granules * GRANULE + OVERHEAD
    if asked == nil or asked < needed then
        job.min_mem_per_node = needed
    end
    if job.environment ~= nil then
        job.environment["MKVMM_MEMORY"] = (granules * GRANULE) .. "M"
    end
    return slurm.SUCCESS
end

function slurm_job_modify(job, record, partitions, uid)
    return slurm.SUCCESS
end

return slurm.SUCCESS
